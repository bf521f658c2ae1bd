"""That what the server says of itself is so, and that nothing which is no proper request harms it."""
