"""Shards in, shards out: coding collections of any size on any number of processes and machines.

```
in-000000.tar --.                                  .-- out/in-000000.tar     the same keys, coded
in-000001.tar --+-- claimed by one process each -- +-- out/in-000001.tar
      ...     --'   (claims)                       '-- out/manifest.json     what was done; it adds up
                                                       out/failures.jsonl    what was not, and why
                                                       out/.glc/             notes of runs that go on
```
"""
