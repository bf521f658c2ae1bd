"""One row of the own engine. Imports torch: import it inside ``load``."""

from __future__ import annotations

import attrs

from aiservices.handlers.text.generation import Prompt
from aiservices.handlers.text.grammar import GrammarRun
from aiservices.handlers.text.own.sampling import Sampler
from aiservices.handlers.text.row import Row

NO_ROOM = "the model's memory is full (cache_tokens): it goes on once others have ended"
"""What the caller of a row is told that waits for room."""


@attrs.define(eq=False, kw_only=True)
class OwnRow(Row):
    """A generation whose tokens are chosen here.

    Attributes:
        sampler: how it chooses tokens.
        run: its way through its grammar; None without one.
        failure: what to fail with at its next token.
        number: higher than that of every row that came before it.
        waits: whether its caller was told that it waits for room.
    """

    sampler: Sampler
    run: GrammarRun | None
    failure: Exception | None = None
    number: int = 0
    waits: bool = False

    def wait(self) -> None:
        """Tell the caller that there is no room for it now."""
        if not self.waits:
            self.waits = True
            self.task.context.wait(NO_ROOM)

    def go_on(self) -> None:
        """Tell a caller who knows that it waited that it goes on."""
        if self.waits:
            self.waits = False
            self.task.context.wait(None)

    @property
    def prompt(self) -> Prompt:
        """What is to be read before the next token: for a row that had to make way, its answer so far as well."""
        asked = self.request.prompt
        return attrs.evolve(asked, token_ids=[*asked.token_ids, *self.tokens]) if self.tokens else asked
