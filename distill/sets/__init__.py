"""The transfer set, and how it is written for other trainers."""
