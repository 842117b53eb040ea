"""Images that need no generator: noise, procedural pictures, any folder or data set, a finished
set, and unions of these.

A source is a stream of blocks, each the same whenever it is asked for: block n follows from the
source, the seed and n.
"""
