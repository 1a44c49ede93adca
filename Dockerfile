# The commands on a CPU. Not built where this was written: no Docker daemon was at hand.
#   docker build -t meltr-ray . && docker run --rm --shm-size=2g -v "$PWD:/work" meltr-ray meltr-sweep plan_only=true
FROM python:3.11-slim

# A C++ compiler: DeepSpeed compiles small extensions at first use; wget: KubeRay probes pods with it
RUN apt-get update && apt-get install -y --no-install-recommends g++ wget && rm -rf /var/lib/apt/lists/*
COPY . /source
# torch first, by its pin, as the Makefile does
RUN cd /source \
 && pip install --no-cache-dir "$(grep '^torch==' constraints.txt)" \
 && pip install --no-cache-dir -c constraints.txt '.[sweep,methods,search]' \
 && rm -rf /source
WORKDIR /work
CMD ["meltr-sweep", "--help"]
