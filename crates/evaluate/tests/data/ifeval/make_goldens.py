"""Makes goldens.jsonl: a list of answers, then constraints, and which answers keep them by lm-evaluation-harness.

`pip install --no-deps lm-eval==0.4.13` and `pip install nltk langdetect immutabledict`, then `python make_goldens.py`.
Left out are sentences and capital words, for which it needs a model of language, and answers of which its guess of the
language decides.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

# The package itself would import much more; its task needs no more than its own three files.
folder = Path(importlib.util.find_spec("lm_eval").submodule_search_locations[0]) / "tasks" / "ifeval"
sys.modules["lm_eval"] = types.ModuleType("lm_eval")
sys.modules["lm_eval.tasks"] = types.ModuleType("lm_eval.tasks")
sys.modules["lm_eval.tasks.ifeval"] = package = types.ModuleType("lm_eval.tasks.ifeval")
package.__path__ = [str(folder)]
import nltk

nltk.data.find = lambda *arguments, **more: True
nltk.download = lambda *arguments, **more: True
from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT  # noqa: E402

ANSWERS = [
    "",
    " \n",
    "Yes.",
    "My answer is no.",
    "a, b",
    "one two three four five",
    "* one\n* two\n- three\n",
    "  - a\n*b\n**c**\n",
    "*high* and **higher** and ** ** and *\n*",
    "First.\n***\nSecond.",
    "First.\n***\n***\nThird.",
    "***\nA ***\nB\n***",
    "hello there\n\n\"World, it is\n\n'twas",
    "Hello\n\n\n\nworld",
    "[name] and [address\n] [a][b]",
    "Text.\nP.S. more",
    "Text.\np. p. s. more",
    "p.s no",
    "Nota bene: x",
    "SECTION 1\na\nSECTION 2\nb",
    "Section 1 SECTION3 SECTION  4",
    '{"a": 1}',
    "```json\n[1, 2]\n```",
    "```\n{a: 1}\n```",
    "{'a': 1}",
    "<<Title>>\ntext",
    "<<>> << >>",
    "<<a\nb>>",
    "<a>",
    "one\n******\ntwo",
    "one\n******\none",
    "******one******two******",
    "a******b******c",
    "a******   ******b",
    "Repeat this please. And more",
    "  repeat THIS please.",
    "Is there more?",
    'the end is near. Is there more?"\n',
    '"quoted text"',
    '"',
    '"half',
    "THIS IS ALL IN CAPITAL LETTERS FOR THE READER",
    "this is all in small letters for the reader",
    "This Is Mixed And Has A SHIP, ships and shipping",
    "a ship's captain; no-ship ship",
    "banana bandana",
    "\u00c4pfel \u00e4pfel",
    "Any *other* text. With sentences, and [placeholders].\n\n* bullet\n",
    "WORLD",
    "Ende gut, alles gut",
    "\u2022 a\n* b",
]

CONSTRAINTS = [
    ("keywords:existence", {"keywords": ["ship"]}),
    ("keywords:existence", {"keywords": ["one", "two"]}),
    ("keywords:existence", {"keywords": ["\u00e4pfel"]}),
    ("keywords:forbidden_words", {"forbidden_words": ["ship", "a"]}),
    ("keywords:forbidden_words", {"forbidden_words": ["is"]}),
    ("keywords:frequency", {"relation": "at least", "keyword": "ship", "frequency": 3}),
    ("keywords:frequency", {"relation": "less than", "keyword": "one", "frequency": 2}),
    ("keywords:letter_frequency", {"let_relation": "at least", "letter": "a", "let_frequency": 4}),
    ("keywords:letter_frequency", {"let_relation": "less than", "letter": "t", "let_frequency": 1}),
    ("length_constraints:number_words", {"relation": "at least", "num_words": 5}),
    ("length_constraints:number_words", {"relation": "less than", "num_words": 3}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "world"}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 2, "nth_paragraph": 1, "first_word": "Hello"}),
    ("length_constraints:nth_paragraph_first_word", {"num_paragraphs": 3, "nth_paragraph": 3, "first_word": "twas"}),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}),
    ("detectable_content:number_placeholders", {"num_placeholders": 3}),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}),
    ("detectable_content:postscript", {"postscript_marker": "Nota bene"}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}),
    ("detectable_format:constrained_response", {}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 3}),
    ("detectable_format:multiple_sections", {"section_spliter": "SECTION", "num_sections": 2}),
    ("detectable_format:multiple_sections", {"section_spliter": "Section", "num_sections": 1}),
    ("detectable_format:json_format", {}),
    ("detectable_format:title", {}),
    ("combination:two_responses", {}),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Repeat this please."}),
    ("startend:end_checker", {"end_phrase": "Is there more?"}),
    ("startend:quotation", {}),
    ("punctuation:no_comma", {}),
    ("change_case:english_capital", {}),
    ("change_case:english_lowercase", {}),
]


def kept(name, arguments, answer):
    """As the harness judges: an empty answer keeps nothing. None if its guess of the language decides."""
    checker = INSTRUCTION_DICT[name](name)
    checker.build_description(**arguments)
    one_case = {"change_case:english_capital": answer.isupper(), "change_case:english_lowercase": answer.islower()}
    if one_case.get(name) and len(answer) < 40:
        return None
    return bool(answer.strip()) and bool(checker.check_following(answer))


marks = {True: "+", False: "-", None: "?"}
with Path(__file__).with_name("goldens.jsonl").open("w") as file:
    file.write(json.dumps(ANSWERS) + "\n")
    for name, arguments in CONSTRAINTS:
        kept_by = "".join(marks[kept(name, arguments, answer)] for answer in ANSWERS)
        line = {"prompt": "p", "instruction_id_list": [name], "kwargs": [arguments], "kept": kept_by}
        file.write(json.dumps(line) + "\n")
