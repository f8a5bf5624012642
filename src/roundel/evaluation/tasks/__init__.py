"""Zero- and few-shot tasks, by the real lm-eval: the papers' sets by name, from the hub or from local files."""
