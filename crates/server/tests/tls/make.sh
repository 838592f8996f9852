#!/bin/sh
# Makes certificate and key for the tests' TLS servers: for 127.0.0.1 only, known to everybody, worth nothing.
cd "$(dirname "$0")" || exit 1
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 -subj "/CN=remote-vae test" \
  -addext "subjectAltName=IP:127.0.0.1" -addext "basicConstraints=critical,CA:FALSE" \
  -keyout key.pem -out certificate.pem
