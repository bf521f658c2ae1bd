"""The engine that comes with the package: transformers' models, in-flight batching, any device. Imports torch."""
