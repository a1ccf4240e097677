"""Which tree pays, round by round: pure arithmetic on floats, no arrays and no model."""
