"""Ground floor: audio I/O, streaming resampling, framing, streaming layers, configs and checkpoints."""
