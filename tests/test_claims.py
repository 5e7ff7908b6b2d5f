"""docs/claims.md: what it quotes is on the pages, its commands exist, and no
measurement of a page is missing."""

import datetime
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [*(ROOT / 'docs').glob('*.md'), ROOT / 'README.md']
PAGES.append(ROOT / 'configs' / 'README.md')
EVIDENCE = ('measured', 'compiled', 'modelled', 'counted')
COLUMNS = ('page', 'figure', 'what', 'command', 'date', 'commit', 'evidence')


def claims() -> list[dict[str, str]]:
  rows = []
  for line in (ROOT / 'docs/claims.md').read_text().splitlines():
    cells = [c.strip() for c in re.split(r'(?<!\\)\|', line)[1:-1]]
    if len(cells) == len(COLUMNS) and cells[0] not in ('page', '---'):
      rows.append(dict(zip(COLUMNS, cells)))
  return rows


def page(name: str) -> pathlib.Path:
  (found,) = {ROOT / name, ROOT / 'docs' / name}.intersection(PAGES)
  return found


def plain(text: str) -> str:
  """One line, whatever the page's line breaks."""
  return ' '.join(text.replace('\\|', '|').split())


@pytest.mark.parametrize('claim', claims(), ids=lambda c: c['what'][:40])
def test_a_claim_is_on_its_page_and_can_be_checked(claim):
  assert plain(claim['figure']) in plain(page(claim['page']).read_text())
  assert claim['evidence'] in EVIDENCE
  assert datetime.date.fromisoformat(claim['date']).year >= 2026
  assert re.fullmatch('[0-9a-f]{7}', claim['commit'])
  program, *words = shlex.split(claim['command'].strip('`'))
  assert program == 'python'
  named = [w.split(':')[0] for w in words if re.search(r'\.py(:|$)', w)]
  assert named
  for file in named:
    assert (ROOT / file).is_file(), file


def test_every_measurement_of_a_page_has_a_claim():
  """Pages name the commit that they measured."""
  known = {(page(c['page']), c['commit']) for c in claims()}
  for file in PAGES:
    if file.name == 'claims.md':
      continue
    found = re.findall(r'commits?\s+([0-9a-f]{7})', file.read_text())
    missing = {c for c in found if (file, c) not in known}
    assert not missing, f'{file.name} measures at {missing}: see docs/claims.md'
