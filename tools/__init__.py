"""Programs beside the package, started by ``scripts/``: making the demo weights, and measuring."""
