# Homebrew. The skipped post-install step would create a cluster.
export HOMEBREW_NO_AUTO_UPDATE=1
brew install --skip-post-install postgresql@17
