"""What the text-generating services share: requests, prompts, grammars, checkpoints, and the engines that decode."""
