"""The TensorFlow backend of learner-core."""
