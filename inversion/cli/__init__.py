"""The command line: its grammar, and what each verb does."""
