"""Digests of haystacks in which LLMTest_NeedleInAHaystack's own code hides a
needle.

  git clone https://github.com/gkamradt/LLMTest_NeedleInAHaystack
  python tests/golden/make_needle.py LLMTest_NeedleInAHaystack \
    > tests/golden/needle.json

Runs `insert_needle` of that checkout on the prose and bytes of
tests/eval_cases.py; tests/test_eval_tasks.py compares ours.
"""

import ast
import hashlib
import json
import pathlib
import sys
import textwrap
import types

HERE = pathlib.Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parents[2])]

from eval_cases import SOURCE, TOKENS  # noqa: E402

from longjax.evals import needle  # noqa: E402

LENGTHS, DEPTHS = (2500, 3001), (0, 10, 33, 50, 77, 100)
FREE = 200  # tokens that the original leaves for the question


def original(checkout):
  """Its function, without what its module imports."""
  file = checkout / 'needlehaystack/llm_needle_haystack_tester.py'
  text = file.read_text()
  (body,) = (
    n.body for n in ast.parse(text).body if isinstance(n, ast.ClassDef)
  )
  (node,) = (n for n in body if getattr(n, 'name', '') == 'insert_needle')
  names: dict = {}
  exec(textwrap.dedent(ast.get_source_segment(text, node, padded=True)), names)
  return names['insert_needle']


def main():
  model = types.SimpleNamespace(
    encode_text_to_tokens=lambda text: TOKENS.encode(text).tolist(),
    decode_tokens=TOKENS.decode,
  )
  tester = types.SimpleNamespace(
    model_to_test=model, needle=needle.NEEDLE, final_context_length_buffer=FREE
  )
  insert, found = original(pathlib.Path(sys.argv[1])), {}
  for length in LENGTHS:
    for depth in DEPTHS:
      text = insert(tester, SOURCE.text, depth, length + FREE)
      found[f'{length} {depth}'] = hashlib.sha256(text.encode()).hexdigest()[
        :16
      ]
  print(json.dumps(found, indent=1))


if __name__ == '__main__':
  main()
