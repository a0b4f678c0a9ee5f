# In the place of python:VERSION-slim-bookworm: Debian's own Python 3.11 with pip and venv.
FROM miniplm-stand-in/debian
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv python3-pip \
    && rm -rf /var/lib/apt/lists/* \
    && ln -s python3 /usr/bin/python
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt
