"""How fast listings are generated, by the engines here and by what one would take instead."""
