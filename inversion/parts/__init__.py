"""What recipes share: the generator, its inner steps, its loss terms, the replay buffer and how it
is sampled.
"""
