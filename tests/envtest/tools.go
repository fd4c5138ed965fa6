//go:build tools

// Package envtest imports the programs to build, so that `go mod tidy` keeps their dependencies.
package envtest

import (
	_ "go.etcd.io/etcd/server/v3"
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
