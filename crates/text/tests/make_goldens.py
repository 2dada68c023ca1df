"""Writes the golden files in `data/`, from implementations that are not this project's: the Python packages
tokenizers (0.23), sentencepiece (0.2) and jinja2 (3.1).

    python make_goldens.py SHARED

SHARED has `models/tiny` (tokenizer.json, tokenizer.model, tokenizer_config.json), `tokenizer` (Gemma 3's own
tokenizer.json and tokenizer_config.json) and `eval` (three books).
"""

import json
import random
import sys
from pathlib import Path

import jinja2.sandbox
import sentencepiece
import tokenizers

SHARED = Path(sys.argv[1])
DATA = Path(__file__).parent / "data"
BOOKS = ["the-time-machine", "treasure-island", "white-fang"]


def nasty():
    """Strings on which tokenizers go wrong."""
    texts = ["", "a", " ", "Hello, world!", "The quick brown fox jumps over the lazy dog."]
    for run in [" ", "\n", "\t", "▁", "\r\n", " \n", "\u00a0", "\u3000", "-", "=", "a", "ab", "🙂", "\x00"]:
        for length in [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 30, 31, 32, 33, 62, 63, 64, 100]:
            if len(run) == 1 or length < 20:
                texts.append(run * length)
    for length in range(1, 36):
        texts += [f"a{' ' * length}b", f"a{chr(10) * length}b", f"{' ' * length}word", f"word{' ' * length}"]
    texts += [
        "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 👍🏽 skin, 🇵🇱🇩🇪 flags, ❤️",
        "e\u0301 e\u0301\u0301\u0316 a\u0308\u0323 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘",
        "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
        "我能吞下玻璃而不伤身体。汉字漢字", "日本語のテキスト、カタカナ、ひらがな", "한국어 텍스트", "مرحبا بالعالم، كيف حالك؟", "שלום עולם",
        "नमस्ते दुनिया", "Привет, мир", "Γειά σου Κόσμε", "ꙮ 𒐫 𝕳𝖊𝖑𝖑𝖔 ﷽ 𠜎𠜱𠝹 \U0010ffff \U000e0001", "\ufeffBOM",
        "\u200b\u200c\u200d\u2060",
        "\u202eright to left\u202c", "ﬁ ligature ² ½ Ⅷ ㎏", "\u0000\u0001\u0002\u001b[31m\u007f\u0080\u0085\u009f",
        "\ufffd\ufffe\uffff", "\ue000\uf8ff",
        "a\u0000b", "tab\tseparated\tvalues\n1\t2\t3\n", "  indented\n    more\n\tand a tab\n\n\n\nend  ",
        "trailing space ", " leading space",
        "▁", "a▁b", "▁a", "a ▁ b", " ▁", "▁ ", "a▁ ▁b", "▁▁▁▁ ▁▁", "a  ▁▁  b", "▁\n▁", "> </", "> </div>",
        "a> </b> </", ">▁</", "><", ">  </",
        "<bos>", "<eos>", "<pad>", "<unk>", "<mask>", "[multimodal]", "<start_of_turn>", "<end_of_turn>",
        "<start_of_image>",
        "<end_of_image>", "<image_soft_token>", "<end_of_turn>user",
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n",
        "a<bos>b", " <bos> ", "<bos><bos>", "<<bos>>", "<bos", "bos>", "< bos>", "<BOS>", "<b<bos>os>",
        "<start_of_<start_of_turn>turn>",
        "<start_of_turn><end_of_turn", "<start_of_turn", "<end_of_turn>\n\n<bos>\n", "<unused0>",
        "<unused1>x<unused99>", "<unused6241>", "<unused6242>",
        "<unused00>", "<unused", "<0x41>", "<0x0A>", "<0x00>", "<0xff>", "<0xFF>", "x<0x41><0x42>y",
        "<table><tr><td>1</td></tr></table>", "<h1>Title</h1>\n<b>bold</b>",
        "<table", "</table>>", "<strong><em>x</em></strong>", "<script>alert('<b>')</script>", "<|im_start|>",
        "[INST] [/INST] <s> </s>", "<s>",
        "1234567890 3.14159 1,000,000 0x7fff 1e-10", "https://example.org/a/b?c=d&e=f#g",
        "fn main() { println!(\"{}\", 1); }",
        "    if x:\n\t\treturn {'a': [1, 2]}\n", "CamelCaseIdentifier snake_case_identifier SCREAMING",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "anananananana banana bananana",
        "ababababababab", "ononondondondon", "hahahahahaha hehehehe", "\"quoted\" ‘single’ “double” «guillemets» …—–",
        "don't can't won't I'm you're",
        "\\n \\t \\\\ \\u0041", "\r\r\r", "\v\f", "a\rb\r\nc", "ÀÉÎÕÜ àéîõü ß ẞ İ ı", "ǅ ǈ ǋ", "½⅓¼", "∑∏∫√∞≠≤≥",
        "🙂🙃🙂🙃", "🧑🏿‍🚀x🧑🏿‍🚀", "x" * 300, " x" * 100, "xy " * 60,
    ]
    return texts


def random_texts(count):
    """Mixtures of what matters to tokenizers."""
    rng = random.Random(20250623)
    words = ["the", "The", "on", "don", "ing", "an", "ana", "ban", "he", "a", "b", "Z", "é", "ß", "我", "ไทย", "🙂",
        "👩‍👧", "\u0301", "▁", "▁▁", " ", "  ",
             "   ", "\n", "\n\n", "\t", "\t\t", "\r", ".", ",", "--", "<", ">", "</", "<b", "<b>", "<bos>",
             "<start_of_turn>", "<end_of_turn", "turn>",
             "<unused7>", "<unused", "[multi", "modal]", "0", "42", "\x00", "\ue000", "𒐫", "'", "\"", "ond", "n", "o",
             "h", "xx", "> </", ">▁</", "<mask>"]
    return ["".join(rng.choice(words) for _ in range(rng.randint(1, 24))) for _ in range(count)]


def fnv(ids):
    """FNV-1a, 64 bits, over the ids as little-endian u32."""
    state = 0xCBF29CE484222325
    for number in ids:
        for byte in number.to_bytes(4, "little"):
            state = (state ^ byte) * 0x100000001B3 % 2**64
    return f"{state:016x}"


def encode(tokenizer, text, special_as_text):
    tokenizer.encode_special_tokens = special_as_text
    return tokenizer.encode(text, add_special_tokens=False).ids


def random_ids(tokenizer):
    """Ids with many byte tokens, whole characters and broken ones."""
    rng = random.Random(7)
    first = tokenizer.token_to_id("<0x00>")
    specials = [tokenizer.token_to_id(t) for t in ["<bos>", "<end_of_turn>", "<unk>", "\n"]]
    size = tokenizer.get_vocab_size()
    lists = []
    for _ in range(120):
        ids = []
        for _ in range(rng.randint(1, 8)):
            kind = rng.random()
            if kind < 0.3:
                ids += [first + b for b in rng.choice("é我🙂𒐫aZ").encode()]
            elif kind < 0.5:
                ids.append(first + rng.choice([0x41, 0x80, 0xC3, 0xE6, 0xF0, 0xFF, 0x0A]))
            elif kind < 0.65:
                ids.append(rng.choice(specials))
            else:
                ids.append(rng.randrange(size + 3))
        lists.append(ids)
    return lists


def tokenizer_goldens(name, folder, with_sentencepiece):
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    golden = {"nasty": [], "random": [], "decode": [], "books": {}}
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")) if with_sentencepiece else None
    for text in nasty():
        entry = {"text": encode(tokenizer, text, True), "parse": encode(tokenizer, text, False)}
        # SentencePiece matches user-defined pieces such as <start_of_turn> always, and control ones never.
        if pieces and "<" not in text:
            entry["sentencepiece"] = pieces.encode(text)
        golden["nasty"].append(entry)
    for text in random_texts(400):
        golden["random"].append({"text": fnv(encode(tokenizer, text, True)), "parse": fnv(encode(tokenizer, text,
            False))})
    for ids in random_ids(tokenizer):
        keep, skip = (tokenizer.decode(ids, skip_special_tokens=skip) for skip in [False, True])
        golden["decode"].append({"ids": ids, "keep": keep, "skip": skip})
    for book in BOOKS:
        text = (SHARED / "eval" / f"{book}.txt").read_bytes().decode()
        ids = encode(tokenizer, text, True)
        golden["books"][book] = {"count": len(ids), "hash": fnv(ids)}
        if pieces:
            assert pieces.encode(text) == ids
    write(f"{name}.json", golden)
    return tokenizer


def conversations():
    contents = ["Hi", "  leading", "trailing  ", "\n\nnewlines\n\n", "\t tab \t", "", "   ", "\n", "a\n", "\na",
        " \n a \n b \n ", "\u00a0nbsp\u00a0", "\u3000wide\u3000",
                "\x1cseparator\x1f", "\u200bzero\u200b", "\x85next\x85", "\x00nul\x00", "user\n", "model", "é", "🙂",
                "▁", " ▁ ", "▁▁▁", "{{ bos_token }}", "{% raw %}", "a\n\n\n\nb",
                "<b>html</b>", "</b> </i>", "> </", "<", ">", "x\r\n", "\ue000\ue001", "\uf8ff\U000f0000",
                "don't \"quote\" & <tag>", "  我  ", "ไทย", "x" * 50, "1. one\n2. two\n"]
    special = ["<bos>", "<end_of_turn>", "<end_of_turn>\n<start_of_turn>model\nSure!", "a<start_of_turn>b", " <eos> ",
        "<end_of_turn", "<start_of_turn", "turn>", "<start_of_<end_of_turn>turn>",
               "<image_soft_token>\n<start_of_image>", "<unused0><mask>", "\n<bos>\n\n", "<end_of_turn><end_of_turn>",
               "\ue000<bos>\ue001<eos>"]
    every = contents + special
    talks = [[("user", content)] for content in every]
    talks += [[("system", content), ("user", "Hello")] for content in every]
    talks += [[("user", "Hello"), ("assistant", content), ("user", every[(i * 7) % len(every)])] for i,
        content in enumerate(every)]
    talks += [[("system", a), ("user", b), ("assistant", a), ("user", b), ("assistant",
        "end")] for a in special[:4] for b in contents[:4]]
    return [[{"role": role, "content": content} for role, content in talk] for talk in talks]


def parts(talk, generate):
    """The format's own special tokens, and the text between them; by hand, to know which is which."""
    yield "<bos>", True
    prefix = ""
    if talk[0]["role"] == "system":
        prefix, talk = talk[0]["content"] + "\n\n", talk[1:]
    text = ""
    for message in talk:
        role = "model" if message["role"] == "assistant" else "user"
        if text:
            yield text, False
        yield "<start_of_turn>", True
        yield role + "\n" + prefix + message["content"].strip(), False
        yield "<end_of_turn>", True
        text, prefix = "\n", ""
    yield text, False
    if generate:
        yield "<start_of_turn>", True
        yield "model\n", False


def chat_goldens(name, folder, tokenizer):
    def refuse(reason):
        raise jinja2.exceptions.TemplateError(reason)

    config = json.loads((folder / "tokenizer_config.json").read_text())
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = refuse
    template = environment.from_string(config["chat_template"])
    golden = []
    for number, talk in enumerate(conversations()):
        generate = number % 5 != 0
        text = template.render(messages=talk, add_generation_prompt=generate, bos_token=config["bos_token"],
            eos_token=config["eos_token"])
        known = list(parts(talk, generate))
        assert "".join(part for part, _ in known) == text, (talk, text)
        ids = []
        for part, special in known:
            ids += [tokenizer.token_to_id(part)] if special else encode(tokenizer, part, True)
        parsed = encode(tokenizer, text, False)
        golden.append({"messages": talk, "generate": generate, "text": text, "ids": fnv(ids), "parse": fnv(parsed)})
    write(f"chat-{name}.json", golden)


def write(name, value):
    (DATA / name).write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")


write("texts.json", {"nasty": nasty(), "random": random_texts(400)})
for name, folder in [("tiny", SHARED / "models" / "tiny"), ("gemma3", SHARED / "tokenizer")]:
    chat_goldens(name, folder, tokenizer_goldens(name, folder, name == "tiny"))
