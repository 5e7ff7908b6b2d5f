"""CPU seconds a token: the tokenizer library alone, and preparing a store.

  python tests/bench/tokenization.py

SmolLM2's tokenizer on two sources of configs/smollm2_135m_prolong_mini.py (11
MB of plays and documentation, fetched if need be). One thread everywhere, CPU
seconds of all processes: reading, hashing, writing and checking included.
"""

import os
import pathlib
import resource
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
os.environ['TOKENIZERS_PARALLELISM'] = 'false'

from configs import smollm2_135m_prolong_mini
from longjax.data import prepare, sources


def cpu_seconds():
  whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  return sum(sum(resource.getrusage(who)[:2]) for who in whose)


def library(tokens, texts):
  """tokens / CPU second of the library's own call."""
  began, count = cpu_seconds(), 0
  for i in range(0, len(texts), 8):
    count += sum(len(ids) for ids in tokens.encoder.encode(texts[i : i + 8]))
  return count / (cpu_seconds() - began)


def prepared(config, tokens):
  """tokens / CPU second of a whole preparation."""
  with tempfile.TemporaryDirectory() as directory:
    began = cpu_seconds()
    made = prepare.prepare(config, tokens, lambda _: None, f'{directory}/data')
    return int(made.lengths.sum()) / (cpu_seconds() - began)


def main():
  config = smollm2_135m_prolong_mini.get_config()
  wanted = {name: config.data.sources[name] for name in ('books', 'short')}
  config.data.sources = wanted
  tokens = prepare.find_tokenizer(config)
  texts = [d.text for n, s in wanted.items() for d in sources.documents(n, s)]
  alone = library(tokens, texts)
  print(f'library      {alone:9,.0f} tokens / CPU second')
  for name, small in (('one process', 1 << 40), ('processes', 0)):
    prepare.SMALL_BYTES = small
    rate = prepared(config, tokens)
    print(f'{name:12} {rate:9,.0f} {rate / alone:6.1%} of the library')


if __name__ == '__main__':
  main()
