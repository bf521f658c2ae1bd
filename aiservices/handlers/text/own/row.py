"""One row of the own engine. Imports torch: import it inside ``load``."""

from __future__ import annotations

import attrs

from aiservices.handlers.text.generation import Prompt
from aiservices.handlers.text.grammar import GrammarRun
from aiservices.handlers.text.own.sampling import Sampler
from aiservices.handlers.text.row import Row


@attrs.define(eq=False, kw_only=True)
class OwnRow(Row):
    """A generation whose tokens are chosen here.

    Attributes:
        sampler: how it chooses tokens.
        run: its way through its grammar; None without one.
        failure: what to fail with at its next token.
        number: higher than that of every row that came before it.
    """

    sampler: Sampler
    run: GrammarRun | None
    failure: Exception | None = None
    number: int = 0

    @property
    def prompt(self) -> Prompt:
        """What is to be read before the next token: for a row that had to make way, its answer so far as well."""
        asked = self.request.prompt
        return attrs.evolve(asked, token_ids=[*asked.token_ids, *self.tokens]) if self.tokens else asked
