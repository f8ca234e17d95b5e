"""What hardware makes of a network before it is there: traffic, energy and time of its memories."""
