#!/bin/sh
# Hands Snug a copy of a certificate and its key, which certbot keeps for root alone. Certbot runs this after it got or
# renewed the certificate it is named for:
#   certbot certonly -d example.org --deploy-hook /usr/share/snug/certbot-hook.sh
# For a certificate that is there already, once by hand:
#   RENEWED_LINEAGE=/etc/letsencrypt/live/example.org sh certbot-hook.sh
# Snug looks at the files every ten seconds and needs no restart; while the two do not fit, it keeps the old pair.
set -eu
to=${SNUG_TLS:-/etc/snug/tls}
install -d -m 0750 -g snug "$to"
for name in privkey fullchain; do
    install -m 0640 -g snug "${RENEWED_LINEAGE:?is the folder of the certificate}/$name.pem" "$to/$name.pem.new"
done
for name in privkey fullchain; do
    mv "$to/$name.pem.new" "$to/$name.pem"
done
