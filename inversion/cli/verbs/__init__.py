"""What each verb does once its options are parsed: one module a verb, with `execute`."""
