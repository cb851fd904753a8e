"""Running steps: what they are fed, compiled loops, and building a Learner by trying its step out."""
