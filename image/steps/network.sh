# Sourced by each step that downloads: how the builder's network wants to be spoken to. The files come from network/,
# which is mounted for the step alone, so nothing of it (a company's CA, an index's address with a password in it) is
# in the image or in `docker history`.
if [ -s /run/build/network/ca.pem ]; then
    for name in SSL_CERT_FILE PIP_CERT REQUESTS_CA_BUNDLE CURL_CA_BUNDLE; do
        export "$name=/run/build/network/ca.pem"
    done
fi
if [ -s /run/build/network/index-url ]; then
    PIP_INDEX_URL=$(cat /run/build/network/index-url)
    export PIP_INDEX_URL UV_DEFAULT_INDEX=$PIP_INDEX_URL
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 UV_HTTP_TIMEOUT=300
