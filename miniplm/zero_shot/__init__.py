"""Zero-shot accuracy by lm-evaluation-harness (extra `eval`): which tasks, measured how, kept where."""
