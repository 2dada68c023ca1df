"""Makes goldens.json: corpora with their BLEU by sacrebleu.

`pip install sacrebleu==2.6.0`, then `python make_goldens.py`.

Each corpus is a list of [text, reference]; `score` and `precisions` are those of its default settings.
"""

import json
import random
from pathlib import Path

from sacrebleu import corpus_bleu

NASTY = [
    ["", ""],
    ["", "a reference"],
    ["a text", ""],
    [" \t ", "x"],
    ["the cat sat on the mat", "the cat sat on the mat"],
    ["The cat sat on the mat.", "the cat sat on the mat."],
    ["the the the the the the the", "the cat is on the mat"],
    ["It costs $1,000.50, or 10%!", "It costs $1,000.50 or 10 %."],
    ["10-20 of 3.5-4.", "10 - 20 of 3.5 - 4 ."],
    ['He said: "well-known" (it\'s so)...', "He said \u201cwell-known\u201d [it is so]\u2026"],
    [
        "Die Stra\u00dfe \u00fcber \u00c4pfel \u2013 na\u00efve caf\u00e9s",
        "Die Stra\u00dfe \u00fcber \u00c4pfel - naive caf\u00e9s",
    ],
    [
        "\u4eca\u65e5\u306f\u3044\u3044\u5929\u6c17\u3067\u3059\u306d\u3002",
        "\u4eca\u65e5\u306f\u5929\u6c17\u304c\u3044\u3044\u3067\u3059\u306d\u3002",
    ],
    ["\U0001f642 ok \U0001f680\U0001f680", "\U0001f642 ok \U0001f680"],
    ["&lt;b&gt;bold&lt;/b&gt; &amp; &quot;quoted&quot; &amp;lt;", '<b>bold</b> & "quoted" &lt;'],
    ["two\nlines of\ntext", "two lines of text"],
    ["hyphen-\nated words", "hyphenated words"],
    ["<skipped>a b c d e", "a b c d e"],
    ["a\u00a0b\u2003c\u200bd \x1c e", "a b c d e"],
    ["a, b,c ,d .e. f.g ..h", "a , b , c , d . e . f . g . . h"],
    ['{"name": "Jane", "age": 77}', '{"name": "Jane", "age": 78}'],
    ["12, 13, 14, 15", "12, 13, 14, 15, 16, 17"],
    ["much longer than what was expected of it here", "much longer"],
    ["short", "short but the reference goes on and on"],
    ["tail space   \n", "tail space"],
    ["a.b,c1.2,3 4,x x.5 5.", "a . b , c 1.2,3 4 , x x .5 5 ."],
    ["~`!@#$%^&*()_+={}[]|\\:;<>?/'", "~ ` ! @ # $"],
    ["\u0661,\u0662 \u00b2.\u00b3 \uff11-\uff12 1-\uff12", "\u0661 , \u0662 \u00b2 . \u00b3"],
    ["\r\ncarriage\rreturn.\r\n", "carriage return ."],
]


def shuffled(seed):
    """Texts of random words: some left out, some exchanged, some repeated."""
    draw = random.Random(seed)
    words = (
        'the a ship sea, of and. to in 3.5 1,000 10-20 it\'s "quoted" (so) caf\u00e9 \u2014 well-known captain'.split()
    )
    pairs = []
    for _ in range(12):
        reference = draw.choices(words, k=draw.randint(1, 20))
        text = [draw.choice(words) if draw.random() < 0.2 else word for word in reference if draw.random() > 0.15]
        pairs.append([" ".join(text + text[: draw.randint(0, 2)]), " ".join(reference)])
    return pairs


def golden(pairs):
    found = corpus_bleu([text for text, _ in pairs], [[reference for _, reference in pairs]])
    return {"pairs": pairs, "score": found.score, "precisions": found.precisions, "brevity_penalty": found.bp}


corpora = [[pair] for pair in NASTY] + [NASTY] + [shuffled(seed) for seed in range(8)]
Path(__file__).with_name("goldens.json").write_text(json.dumps([golden(pairs) for pairs in corpora], indent=1) + "\n")
