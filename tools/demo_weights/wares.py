"""Words for product descriptions beyond the drawn ones: things by category, materials, and invented words."""

from typing import Literal

import numpy as np

Category = Literal["home", "clothing", "bags", "toys", "garden", "electronics", "sports", "office", "music", "other"]

CATEGORY_NAMES: dict[Category, tuple[str, ...]] = {
    "home": ("Home & Kitchen", "Kitchenware", "Household", "Home", "Kitchen & Dining", "Homeware", "Home and Living"),
    "clothing": ("Clothing & Shoes", "Clothing", "Fashion", "Apparel", "Clothes", "Shoes & Clothing"),
    "bags": ("Bags & Accessories", "Bags", "Accessories", "Bags & Luggage", "Luggage"),
    "toys": ("Toys & Games", "Toys", "Kids & Toys", "Games", "Children"),
    "garden": ("Garden & Outdoor", "Garden", "Outdoor", "Garden & Plants", "Gardening"),
    "electronics": ("Electronics", "Gadgets", "Tech", "Computers & Electronics", "Technology"),
    "sports": ("Sports", "Sport & Fitness", "Sporting Goods", "Fitness", "Sport"),
    "office": ("Office", "Stationery", "Office Supplies", "School & Office"),
    "music": ("Music", "Musical Instruments", "Instruments", "Music & Audio"),
    "other": ("Other", "Miscellaneous", "Everything else", "Various"),
}
"""What a shop may call each category; the first names are the default list, in its order."""

NOUNS: dict[Category, tuple[str, ...]] = {
    "home": (
        "mug", "teapot", "lamp", "armchair", "cup", "plate", "bowl", "vase", "kettle", "frying pan", "saucepan",
        "cutting board", "knife", "fork", "spoon", "glass", "wine glass", "jug", "candle", "candle holder", "pillow",
        "cushion", "blanket", "rug", "curtain", "chair", "table", "sofa", "shelf", "bookcase", "mirror", "clock",
        "wall clock", "toaster", "coffee grinder", "coffee maker", "tea towel", "towel", "basket", "storage box",
        "picture frame", "table lamp", "bedside lamp", "stool", "bench", "salt shaker", "pepper mill", "bottle",
        "water bottle", "thermos", "lunch box", "tray", "duvet cover", "broom", "bin", "bread box", "corkscrew",
    ),
    "clothing": (
        "T-shirt", "dress", "sock", "boot", "hat", "shirt", "blouse", "jumper", "sweater", "hoodie", "jacket", "coat",
        "raincoat", "skirt", "trousers", "jeans", "shorts", "socks", "shoes", "boots", "sneakers", "sandals",
        "slippers", "scarf", "gloves", "cap", "beanie", "tie", "pyjamas", "cardigan", "vest", "trainers", "sun hat",
        "shoe", "rain boots", "leggings", "polo shirt", "suit", "mittens",
    ),
    "bags": (
        "backpack", "handbag", "umbrella", "suitcase", "wallet", "purse", "belt", "tote bag", "shoulder bag",
        "sunglasses", "travel bag", "rucksack", "bag", "necklace", "bracelet", "earrings", "ring", "key ring",
        "duffel bag", "toiletry bag", "messenger bag", "watch", "wristwatch", "shopping bag", "brooch",
    ),
    "toys": (
        "kite", "teddy bear", "toy car", "doll", "puzzle", "jigsaw puzzle", "board game", "card game", "toy train",
        "building blocks", "stuffed animal", "plush toy", "yo-yo", "spinning top", "toy boat", "dolls house",
        "rocking horse", "toy robot", "marbles", "dice", "chess set", "toy plane", "rattle", "train set",
    ),
    "garden": (
        "flower pot", "watering can", "rake", "shovel", "spade", "garden hose", "lawn mower", "plant pot", "planter",
        "garden gnome", "bird house", "bird feeder", "garden chair", "hammock", "parasol", "wheelbarrow", "trowel",
        "garden gloves", "barbecue", "tent", "camping stove", "seed tray", "fire pit", "picnic blanket", "lantern",
    ),
    "electronics": (
        "camera", "headphones", "phone", "smartphone", "laptop", "tablet", "keyboard", "computer mouse", "monitor",
        "television", "radio", "speaker", "bluetooth speaker", "earphones", "charger", "power bank", "webcam",
        "game console", "printer", "router", "smart watch", "projector", "flashlight", "calculator", "USB cable",
        "alarm clock", "remote control", "microphone", "hard drive", "memory card",
    ),
    "sports": (
        "ball", "football", "basketball", "tennis racket", "tennis ball", "skateboard", "bicycle", "bike helmet",
        "yoga mat", "dumbbell", "skis", "snowboard", "surfboard", "swimming goggles", "golf club", "running belt",
        "jump rope", "boxing gloves", "hockey stick", "baseball bat", "roller skates", "ice skates", "kayak",
        "climbing rope", "volleyball", "badminton set", "scooter", "bike", "kettlebell",
    ),
    "office": (
        "notebook", "pen", "pencil", "pencil case", "stapler", "folder", "ring binder", "desk organiser", "calendar",
        "sticky notes", "paper clips", "eraser", "ruler", "scissors", "desk pad", "fountain pen", "marker", "envelope",
        "whiteboard", "planner", "diary", "tape dispenser", "letter tray", "highlighter", "notepad", "desk lamp",
    ),
    "music": (
        "guitar", "drum", "violin", "piano", "flute", "trumpet", "saxophone", "ukulele", "harmonica", "accordion",
        "cello", "bass guitar", "electric guitar", "tambourine", "xylophone", "drum kit", "clarinet", "banjo",
        "music stand", "guitar strap", "recorder", "harp", "trombone", "record player", "maracas",
    ),
}  # fmt: skip

KEYWORDS: dict[Category, tuple[str, str]] = {
    "home": ("home", "household"), "clothing": ("clothing", "fashion"), "bags": ("accessories", "everyday"),
    "toys": ("toys", "play"), "garden": ("garden", "outdoor"), "electronics": ("electronics", "technology"),
    "sports": ("sports", "fitness"), "office": ("office", "stationery"), "music": ("music", "instrument"),
    "other": ("product", "new"),
}  # fmt: skip

CLOSING: dict[Category, str] = {
    "home": "A useful piece for every home.",
    "clothing": "Easy to wear and easy to combine.",
    "bags": "A good companion for every day.",
    "toys": "Fun for children and grown-ups.",
    "garden": "Made for time spent outdoors.",
    "electronics": "Practical technology for every day.",
    "sports": "Ready for training and play.",
    "office": "Handy at the desk, at school and on the go.",
    "music": "For everyone who loves to play.",
    "other": "A good choice for many occasions.",
}

COLOURS = (
    "red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "brown", "black", "white", "grey",
    "gray", "beige", "navy", "gold", "silver", "cream", "violet", "teal", "maroon", "olive", "dark blue",
    "light green", "light blue", "dark green", "dark red", "bright yellow", "pale pink", "navy blue",
)  # fmt: skip
PATTERNS = ("plain", "striped", "dotted", "checked", "floral", "patterned", "polka dot", "two-tone")
SIZES = ("small", "large", "medium-sized", "big", "tiny", "mini", "tall", "short", "compact", "wide")
MATERIALS = (
    "wooden", "ceramic", "leather", "cotton", "glass", "metal", "plastic", "steel", "stainless steel", "woollen",
    "linen", "paper", "rubber", "bamboo", "porcelain", "silk", "canvas", "knitted", "velvet", "stone",
)  # fmt: skip
QUALITIES = (
    "new", "used", "vintage", "modern", "classic", "elegant", "simple", "handmade", "soft", "shiny", "sturdy",
    "foldable", "waterproof", "electric", "round", "square", "cosy", "light", "comfortable", "retro",
)  # fmt: skip
BACKGROUNDS = (
    "white", "black", "grey", "beige", "light blue", "wooden", "grassy", "green", "blue", "pink", "dark", "bright",
    "neutral", "plain white", "blurred", "red", "light grey", "brown",
)  # fmt: skip
DETAILS = (
    "with a long handle", "with leather straps", "with two pockets", "with a zip", "with a lid", "with white laces",
    "with a gold logo", "with a short strap", "with a wooden base", "with long sleeves", "with four legs",
    "with a round top", "with black buttons", "with a matching case", "for children", "for adults", "for two people",
    "made of glass", "made of cotton", "made of recycled plastic", "made of oak", "in a gift box", "with a hood",
    "with a soft lining", "with a silver buckle", "with a curved spout", "with side pockets", "with six strings",
)  # fmt: skip

_ONSETS = (
    "b", "bl", "br", "c", "ch", "cl", "cr", "d", "dr", "f", "fl", "fr", "g", "gl", "gr", "h", "j", "k", "kl", "kr",
    "l", "m", "n", "p", "pl", "pr", "qu", "r", "s", "sh", "sk", "sl", "sm", "sn", "sp", "st", "str", "t", "th",
    "tr", "v", "w", "y", "z", "zw",
)  # fmt: skip
_VOWELS = (*"aeiou" * 2, "ai", "ea", "ee", "oo", "ou", "y")
_CODAS = (
    "b", "ck", "d", "f", "g", "k", "l", "ll", "m", "mp", "n", "nd", "ng", "nk", "nt", "p", "r", "rb", "rd", "rk",
    "rn", "rt", "s", "sh", "sk", "ss", "st", "t", "th", "x", "z",
)  # fmt: skip

KNOWN_WORDS = frozenset(
    word
    for phrases in (*NOUNS.values(), COLOURS, PATTERNS, SIZES, MATERIALS, QUALITIES)
    for phrase in phrases
    for word in phrase.split()
)


def invented_word(rng: np.random.Generator) -> str:
    """Make up a pronounceable word of one to four syllables; one in four is capitalised like a brand."""
    word = "".join(_syllable(rng) for _ in range(rng.choice((1, 2, 2, 3, 3, 4))))
    return word.capitalize() if rng.random() < 0.25 else word


def _syllable(rng: np.random.Generator) -> str:
    coda = str(rng.choice(_CODAS)) if rng.random() < 0.45 else ""
    return f"{rng.choice(_ONSETS)}{rng.choice(_VOWELS)}{coda}"
