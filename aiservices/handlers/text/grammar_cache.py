"""Grammars that are used again are compiled once."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict

from aiservices.handlers.text.grammar import Grammar
from aiservices.handlers.text.json_nodes import Record, to_schema
from aiservices.handlers.text.json_tokens import JsonTokens


class GrammarCache:
    """The grammars used last. Usable from several threads.

    Args:
        tokens: which the grammars choose from.
        size: how many are kept.
    """

    def __init__(self, tokens: JsonTokens, size: int = 32) -> None:
        self._tokens = tokens
        self._size = size
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, root: Record) -> Grammar:
        """Get the grammar of an object, compiled now if it is not there; the same for all that mean the same.

        Raises:
            ServiceError: it does not compile, or there are no tokens for some of its bytes.
        """
        key = json.dumps(to_schema(root))
        with self._lock:
            grammar = self._grammars.pop(key, None)
        grammar = grammar or Grammar.compile(root, self._tokens)  # here, so that it keeps nobody waiting
        with self._lock:
            self._grammars[key] = grammar
            if len(self._grammars) > self._size:
                self._grammars.popitem(last=False)
        return grammar
