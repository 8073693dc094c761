package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/grpc"
	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"
	limit "k8s.io/kubernetes/pkg/kubelet/apis/grpc"
	"k8s.io/kubernetes/pkg/kubelet/apis/podresources"
	"k8s.io/kubernetes/pkg/kubelet/cm/devicemanager"
)

// servePodResources serves the kubelet's own implementation of the podresources API, with its limit of requests.
func (n *node) servePodResources(ctx context.Context) error {
	path := filepath.Join(n.folder, "pod-resources", podresources.Socket+".sock")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// A kubelet replaces the socket of the one before it.
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer(limit.WithRateLimiter(ctx, "podresources", podresources.DefaultQPS, podresources.DefaultBurstTokens))
	podresourcesapi.RegisterPodResourcesListerServer(server, podresources.NewV1PodResourcesServer(ctx, podresources.PodResourcesProviders{
		Pods: n, Devices: deviceLists{n.devices}, Cpus: nothing{}, Memory: nothing{}, DynamicResources: nothing{},
	}))
	go func() {
		if err := server.Serve(listener); err != nil {
			exit(1, fmt.Errorf("podresources: %w", err))
		}
	}()
	return nil
}

// GetActivePods is for podresources.PodsProvider.
func (n *node) GetActivePods() []*v1.Pod { return n.active() }

// GetPods is for podresources.PodsProvider. Pods that have ended are forgotten at once here.
func (n *node) GetPods() []*v1.Pod { return n.active() }

// GetPodByName is for podresources.PodsProvider.
func (n *node) GetPodByName(namespace, name string) (*v1.Pod, bool) {
	pods := n.active()
	at := slices.IndexFunc(pods, func(pod *v1.Pod) bool { return pod.Namespace == namespace && pod.Name == name })
	if at < 0 {
		return nil, false
	}
	return pods[at], true
}

// deviceLists says what the device manager knows in the API's words: a message a device and NUMA node, as a kubelet does.
type deviceLists struct {
	manager *devicemanager.ManagerImpl
}

func (d deviceLists) UpdateAllocatedDevices(logger klog.Logger) {
	d.manager.UpdateAllocatedDevices(logger)
}

func (d deviceLists) GetDevices(uid, container string) []*podresourcesapi.ContainerDevices {
	return listed(d.manager.GetDevices(uid, container))
}

func (d deviceLists) GetAllocatableDevices(logger klog.Logger) []*podresourcesapi.ContainerDevices {
	return listed(d.manager.GetAllocatableDevices(logger))
}

func listed(resources devicemanager.ResourceDeviceInstances) []*podresourcesapi.ContainerDevices {
	var list []*podresourcesapi.ContainerDevices
	for name, devices := range resources {
		for id, device := range devices {
			nodes := device.GetTopology().GetNodes()
			if len(nodes) == 0 {
				list = append(list, &podresourcesapi.ContainerDevices{ResourceName: name, DeviceIds: []string{id}})
			}
			for _, node := range nodes {
				topology := &podresourcesapi.TopologyInfo{Nodes: []*podresourcesapi.NUMANode{{ID: node.GetID()}}}
				list = append(list, &podresourcesapi.ContainerDevices{ResourceName: name, DeviceIds: []string{id}, Topology: topology})
			}
		}
	}
	return list
}

// nothing is what this node has of processors, memory and claims to give out.
type nothing struct{}

func (nothing) GetCPUs(*v1.Pod, *v1.Container) []int64 { return nil }
func (nothing) GetPodCPUs(string) []int64              { return nil }
func (nothing) GetAllocatableCPUs() []int64            { return nil }

func (nothing) GetMemory(klog.Logger, *v1.Pod, *v1.Container) []*podresourcesapi.ContainerMemory {
	return nil
}
func (nothing) GetPodMemory(klog.Logger, string) []*podresourcesapi.ContainerMemory { return nil }
func (nothing) GetAllocatableMemory(klog.Logger) []*podresourcesapi.ContainerMemory { return nil }

func (nothing) GetDynamicResources(klog.Logger, *v1.Pod, *v1.Container) []*podresourcesapi.DynamicResource {
	return nil
}
