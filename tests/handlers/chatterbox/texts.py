"""Texts that no author of a speech model has thought of."""

from __future__ import annotations

import random

SCRIPTS = (
    "abcdefghijklmnopqrstuvwxyz",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "\u00e4\u00f6\u00fc\u00df\u00e9\u00e8\u00ea\u00f1\u00e7\u0159\u017e\u0142\u0111\u0131\u1ea5",
    "0123456789\u0663\u0967\u4e09\u2163\u00bd\u00b2",
    "\u0430\u0431\u0432\u0433\u0434\u0435\u0436\u0437\u0438\u0439\u0451\u0457",
    "\u03b1\u03b2\u03b3\u03b4\u03b5\u03c9\u03cc",
    "\u05d0\u05d1\u05d2\u05d3\u05e9\u05b8",
    "\u0627\u0628\u062a\u062b\u0639\u064e\u0640\u06cc",
    "\u0905\u0915\u093f\u094d\u0930\u0924",
    "\u0e01\u0e34\u0e49\u0e2d",
    "\u4e2d\u6587\u5b57\u9f8d\U00020000",
    "\u3042\u308a\u304c\u30a2\u30f3\u30fc",
    "\ud55c\uad6d\uc5b4\u1112\u1161\u11ab",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f1e9\U0001f1ea\u2764\ufe0f",
    "\u0301\u0308\u20dd\u200b\u200d\u202e\ufeff\u0000\x1b\ue000",
    ".,;:!?-\u2014\u2026'\"\u201c\u00bf\u3002\uff01\u060c()[]{}<>/\\@#%&*_=+~^|`\u20ac$\u2211",
    " \t\n\u00a0\u2003\u2028",
)
"""Letters of many scripts; digits, pictures, marks that join or hide, punctuation, white space."""

SNIPPETS = (
    "aa",
    "ooo",
    "lll",
    "1000000",
    "3.14159",
    "https://host/a?b=c",
    "[laugh]",
    "[STOP]",
    "[en]",
    "[cj_a]",
    "\n\n",
)
"""What tokenizers or judges have stumbled over."""

MAX_CHARS = 400


def any_text(chance: random.Random) -> str:
    """Make a text of 0 to 400 characters."""
    wanted = chance.choice((0, 1, 1, 2, 3, 5, 8, chance.randint(0, 60), chance.randint(0, MAX_CHARS)))
    scripts = chance.sample(SCRIPTS, chance.randint(1, 4))
    text = ""
    while len(text) < wanted:
        kind = chance.random()
        if kind < 0.1:
            text += chance.choice(SNIPPETS)
        elif kind < 0.2:
            text += chance.choice(chance.choice(scripts)) * chance.randint(2, 9)
        elif kind < 0.35:
            text += " "
        else:
            text += "".join(chance.choices(chance.choice(scripts), k=chance.randint(1, 7)))
    return text[:wanted]
