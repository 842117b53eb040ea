"""The scorecard: what makes a set good, measured from the teacher alone."""
