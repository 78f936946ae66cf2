"""From a pretrained model to one that does what people want: instructions, preferences, rewards."""
