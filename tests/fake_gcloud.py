"""A fake cloud in a directory; tests put it on PATH as `gcloud`, `xpk`, `ssh`
and `scp`.

$FAKE_CLOUD/script.json:
  now      states of the queued resource; each `describe` takes the first, the
           last stays; [] is NOT_FOUND; OFFLINE is no answer
  lives    the values of `now` that successive `create`s set
  trains   a line of shell that trains, for each life
  refuse   the error of `create`
  away     {host: how many times ssh fails to reach it}
  drop     how many times ssh dies after the command has run
  private  the hosts are reached through Identity-Aware Proxy only
  node     what `tpu-vm describe` prints
  cluster  labels of a GKE cluster; `xpk` creates and deletes it
  ended    exit code of `xpk workload list --wait-for-job-completion`
Hosts are directories with homes of their own; what ssh is given runs there.
"""

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys

CLOUD = pathlib.Path(os.environ['FAKE_CLOUD'])
BROKEN = (
  'ERROR: (gcloud.compute.tpus.queued-resources.ssh) [/usr/bin/ssh] exited '
  'with return code [255].'
)


def main(argv) -> int:
  """argv: gcloud, xpk, ssh or scp, and its arguments."""
  argv = [x for x in argv if x not in ('gcloud', 'xpk', 'alpha')]
  with (CLOUD / 'calls.jsonl').open('a') as file:
    fcntl.flock(file, fcntl.LOCK_EX)  # a command a host, at the same time
    file.write(json.dumps(argv) + '\n')
    script = json.loads((CLOUD / 'script.json').read_text())
    code = play(argv, script)
    (CLOUD / 'script.json').write_text(json.dumps(script))
  return code


def play(argv, script) -> int:
  if argv[:2] == ['storage', 'cat']:
    return cat(argv[-1])
  if argv[0] in ('container', 'cluster', 'workload'):
    return gke(argv, script)
  acts = {
    'describe': describe, 'create': create, 'delete': delete, 'scp': scp,
    'ssh': ssh, 'list-instances': list_instances,
  }  # fmt: skip
  verb = next(x for x in argv if x in acts)
  tunnel = '--tunnel-through-iap' in argv
  if verb in ('ssh', 'scp') and script.get('private') and not tunnel:
    return fail('[/usr/bin/ssh] exited with return code [255].', 255)
  return acts[verb](argv, script)


def delete(argv, script) -> int:
  script['now'] = []
  shutil.rmtree(CLOUD / 'workers')
  return 0


def scp(argv, script) -> int:
  (file,) = (x for x in argv if x.endswith('.tar.gz'))
  for home in homes(argv):
    shutil.copy(file, home)
  return 0


def gke(argv, script) -> int:
  """gcloud's container clusters, and xpk."""
  if argv[0] == 'container':
    labels = script.get('cluster')
    one = dict(status='RUNNING', location='us-east5-a', resourceLabels=labels)
    print(json.dumps([one] if labels is not None else []))
  elif argv[:2] == ['cluster', 'create']:
    script['cluster'] = dict(longjax=argv[-1].rsplit('=', 1)[-1])
  elif argv[:2] == ['cluster', 'delete']:
    del script['cluster']
  elif argv[:2] == ['workload', 'create']:
    if script.get('workload'):
      print('[XPK] run already exists, XPK will not create this workload.')
      return 1
    script['workload'] = argv
  elif argv[:2] == ['workload', 'delete']:
    script.pop('workload', None)
  elif 'wait-for' in argv[-1]:
    return script.get('ended', 0)
  return 0


def describe(argv, script) -> int:
  now = script['now']
  if 'tpu-vm' in argv:
    print(json.dumps(script['node']))
    return 0
  if not now:
    text = f"NOT_FOUND: Resource 'projects/p/queuedResources/{argv[4]}' was not"
    return fail(f'(gcloud.compute.tpus.queued-resources.describe) {text} found')
  script['now'] = now[1:] or now
  state, _, why = now[0].partition('|')
  if state == 'OFFLINE':
    return fail('(gcloud.compute) There was a problem refreshing your tokens')
  about = dict(state=state)
  if why:
    about['failedData'] = dict(error=dict(code=8, message=why))
  nodes = [dict(node=script.get('node', {}))]
  print(json.dumps(dict(state=about, tpu=dict(nodeSpec=nodes))))
  return 0


def create(argv, script) -> int:
  if script.get('refuse'):
    return fail(script['refuse'])
  script['now'] = script['lives'].pop(0)
  flags = dict(x[2:].split('=', 1) for x in argv if '=' in x)
  key, value = flags['labels'].split('=')
  kind = flags.get('accelerator-type')
  script['node'] = dict(labels={key: value}, acceleratorType=kind)
  (CLOUD / 'train').write_text((script.get('trains') or ['sleep 60']).pop(0))
  for i in range(script.get('workers', 2)):
    (CLOUD / 'workers' / f'w{i}').mkdir(parents=True)
  return 0


def ssh(argv, script) -> int:
  command = argv[-1].removeprefix('--command=')
  code, away = 0, script.get('away', {})
  for home in homes(argv):
    if away.get(home.name):
      away[home.name] -= 1
      fail(BROKEN.removeprefix('ERROR: '))
      code = 255
      continue
    done = subprocess.run(
      ['bash', '-c', command], cwd=home, text=True, check=False,
      env=os.environ | dict(HOME=str(home), WORKER=home.name),
      capture_output=True,
    )  # fmt: skip
    if not script.get('drop'):
      sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    code = code or done.returncode
  if script.get('drop'):
    script['drop'] -= 1
    return fail(BROKEN.removeprefix('ERROR: '), 255)
  return code


def cat(url) -> int:
  file = CLOUD / 'bucket' / url.removeprefix('gs://')
  if not file.exists():
    return fail('(gcloud.storage.cat) The following URLs matched no objects')
  sys.stdout.write(file.read_text()[-4096:])
  return 0


def list_instances(argv, script) -> int:
  zone = 'https://compute/v1/projects/p/zones/us-east5-a/instances'
  found = [dict(instance=f'{zone}/{home.name}', instanceStatus='RUNNING')
           for home in (CLOUD / 'workers').iterdir()]  # fmt: skip
  print(json.dumps(found))
  return 0


def homes(argv):
  """Of all hosts, of the one that --worker names, or that is an argument."""
  found = sorted((CLOUD / 'workers').iterdir())
  words = {x.rpartition('@')[2].rstrip(':') for x in argv}
  worker = next((x[9:] for x in argv if x.startswith('--worker=')), '')
  if worker and worker != 'all':
    return [found[int(worker)]]
  return [x for x in found if worker or x.name in words]


def fail(text, code=1) -> int:
  print(f'ERROR: {text}', file=sys.stderr)
  return code


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
