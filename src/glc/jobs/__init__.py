"""Resumable batch jobs: shards in, shards out, on any number of processes and machines.

```
in-000000.tar --.                                  .-- out/in-000000.tar     the same keys, processed
in-000001.tar --+-- one process each, by locks ----+-- out/in-000001.tar
      ...     --'                                  '-- out/manifest.json     what was done; the counts add up
                                                       out/failures.jsonl    what failed, and why
                                                       out/.glc/             state of what is not finished
```

`run` is the one runner. `glc compress|decompress --shards`, `glc eval` and `glc pack` are tasks for it.
"""
