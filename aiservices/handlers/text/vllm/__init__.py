"""vLLM as the engine, in a process of its own. Imports vllm: import it inside ``load``."""
