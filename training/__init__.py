"""Train the demo weights: draw product pictures, write texts about them, train both tiny models, evaluate them."""
