"""Environment runners, replay, normalisation and inference in numpy."""
