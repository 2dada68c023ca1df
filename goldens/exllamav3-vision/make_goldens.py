"""Makes model.safetensors and golden.safetensors with exllamav3 (1.6.5, on a GPU of NVIDIA's):

    python3 make_goldens.py ../vision-4b-shape TOKENIZER CALIBRATION WORK

TOKENIZER is a folder with a tokenizer of 512 entries, which exllamav3 asks for and only its texts would need.
CALIBRATION is a safetensors file with `input_ids`, 24 rows of 512 tokens. WORK is where everything is made.
"""

import shutil
import sys
from pathlib import Path

import torch
from exllamav3 import Config, Model
from exllamav3.conversion.convert_model import main, parser, prepare
from safetensors.torch import save_file

source, tokenizer, calibration, work = map(Path, sys.argv[1:5])
model, result = work / "model", work / "result"
shutil.copytree(source, model)
for file in tokenizer.iterdir():
    if file.name != "config.json" and not (model / file.name).exists():
        shutil.copy(file, model)

arguments = ["-i", model, "-o", result, "-w", work / "progress", "-b", "2.75", "-hb", "6", "-vb", "16"]
arguments += ["-cd", calibration, "-cr", "24", "-cc", "512"]
settings, state, good, problem = prepare(parser.parse_args([str(argument) for argument in arguments]))
if not good:
    sys.exit(problem)
main(settings, state)

config = Config.from_directory(str(result))
quantized = Model.from_config(config)
quantized.load(torch.device("cuda:0"))
generator = torch.Generator().manual_seed(3)
ids = [2] + torch.randint(10, 500, (63,), generator=generator).tolist()
logits = quantized.forward(torch.tensor([ids]), {"attn_mode": "flash_attn_nc"})[0].float().cpu().contiguous()
save_file({"input_ids": torch.tensor(ids), "logits": logits}, work / "golden.safetensors")
