"""What attention does, by layer, head and length: entropy, norms, planted mass, dilution, sinks, distractors."""
