"""How models are made: corpus preparation, labelling, training of codec, units and lm, tokenising."""
