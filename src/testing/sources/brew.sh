# Homebrew. The step that is skipped would create a cluster.
export HOMEBREW_NO_AUTO_UPDATE=1
brew install --skip-post-install postgresql@17
