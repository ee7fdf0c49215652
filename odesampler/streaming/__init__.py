"""Any number of samples, in constant memory: shard after shard, on any number of processes.

    sample_many: seeds [i * size, (i + 1) * size) -> images;     encode_many: pictures, likewise -> latents

`shards` says what a run is, and why it can be killed at any moment; `runs` carries one out, `facts` are what two runs
must agree in to be the same. The same command goes on with a run that was begun, skips what is done, and ends with the
same files as one that was never interrupted, bit for bit on the same kind of machine with the same `max_batch`. That
should be a number then: "auto" depends on the memory that is free, and each shard's record says how many samples a call
had.
"""
