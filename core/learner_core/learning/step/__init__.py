"""One minibatch step: what hooks see, what is computed, what counts."""
