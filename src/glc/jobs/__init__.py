"""Resumable batch jobs: shards in, shards out, on any number of processes and machines.

```
in-000000.tar --.                                  .-- out/in-000000.tar     the same keys, processed
in-000001.tar --+-- one process each, by locks ----+-- out/in-000001.tar
      ...     --'                                  '-- out/manifest.json     settings, totals, shards
                                                       out/failures.jsonl    failed samples, with reasons
                                                       out/.glc/             state of the job
```

`glc.jobs.run.run` runs every job: `glc compress|decompress --shards`, `glc eval` and `glc pack` are tasks.
"""
