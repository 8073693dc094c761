package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	_ "unsafe" // for go:linkname

	cadvisorapi "github.com/google/cadvisor/lib/model"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm/containermap"
	"k8s.io/kubernetes/pkg/kubelet/cm/devicemanager"
	"k8s.io/kubernetes/pkg/kubelet/cm/topologymanager"
	"k8s.io/kubernetes/pkg/kubelet/config"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
)

// newManagerImpl is the constructor that takes the socket's path; the exported one fixes it below /var/lib/kubelet.
//
//go:linkname newManagerImpl k8s.io/kubernetes/pkg/kubelet/cm/devicemanager.newManagerImpl
func newManagerImpl(klog.Logger, string, []cadvisorapi.Node, topologymanager.Store) (*devicemanager.ManagerImpl, error)

// node is what of a kubelet has to do with devices: which pods are on it, the device manager, the topology manager through
// which pods are admitted, and the podresources API.
type node struct {
	logger   klog.Logger
	folder   string
	devices  *devicemanager.ManagerImpl
	topology topologymanager.Manager

	// ready is whether the pods that were here before have been admitted again. Until then the device manager gives a
	// container that ran on nothing new.
	ready atomic.Bool
	// admission is held while a pod is admitted: a kubelet admits one after another.
	admission sync.Mutex
	mutex     sync.Mutex
	pods      map[types.UID]*v1.Pod
}

func newNode(logger klog.Logger, folder, policy string, numaNodes int) (*node, error) {
	plugins := filepath.Join(folder, "device-plugins")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		return nil, err
	}
	machine := make([]cadvisorapi.Node, numaNodes)
	for id := range machine {
		machine[id] = cadvisorapi.Node{Id: id}
	}
	topology, err := topologymanager.NewManager(logger, machine, policy, "container", nil)
	if err != nil {
		return nil, fmt.Errorf("topology-manager-policy %q: %w", policy, err)
	}
	devices, err := newManagerImpl(logger, filepath.Join(plugins, "kubelet.sock"), machine, topology)
	if err != nil {
		return nil, err
	}
	topology.AddHintProvider(logger, devices)
	return &node{logger: logger, folder: folder, devices: devices, topology: topology, pods: map[types.UID]*v1.Pod{}}, nil
}

// start lets plugins register. The containers of `running` ran on while the kubelet was away, as its runtime would say.
func (n *node) start(ctx context.Context, running []*v1.Pod) error {
	containers, ids := containermap.NewContainerMap(), sets.New[string]()
	for _, pod := range running {
		n.pods[pod.UID] = pod
		for _, container := range pod.Spec.Containers {
			id := string(pod.UID) + "/" + container.Name
			containers.Add(string(pod.UID), container.Name, id)
			ids.Insert(id)
		}
	}
	sources := config.NewSourcesReady(func(sets.Set[string]) bool { return n.ready.Load() })
	if err := n.devices.Start(n.logger, n.active, sources, containers, ids); err != nil {
		return err
	}
	return n.servePodResources(ctx)
}

// active gives the pods that are neither ended nor refused.
func (n *node) active() []*v1.Pod {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	pods := make([]*v1.Pod, 0, len(n.pods))
	for _, pod := range n.pods {
		pods = append(pods, pod)
	}
	return pods
}

// admission is a kubelet's verdict on a pod.
type admission struct {
	Admitted bool   `json:"admitted"`
	Reason   string `json:"reason,omitempty"`
	Message  string `json:"message,omitempty"`
}

func (n *node) admit(ctx context.Context, pod *v1.Pod) (*admission, error) {
	if pod == nil || pod.UID == "" {
		return nil, errors.New("pod: needs a uid")
	}
	n.admission.Lock()
	defer n.admission.Unlock()
	n.put(pod)
	verdict := n.topology.Admit(ctx, &lifecycle.PodAdmitAttributes{Pod: pod, Operation: lifecycle.AddOperation})
	if !verdict.Admit {
		// A refused pod has failed: it is not active, and never comes back under its UID.
		n.drop(pod.UID)
	}
	return &admission{Admitted: verdict.Admit, Reason: verdict.Reason, Message: verdict.Message}, nil
}

// run is the part of starting a container that asks the device manager, which asks the plugin's PreStartContainer.
func (n *node) run(ctx context.Context, uid types.UID, name string) (*kubecontainer.RunContainerOptions, error) {
	pod, container, err := n.container(uid, name)
	if err != nil {
		return nil, err
	}
	granted, err := n.devices.GetDeviceRunContainerOptions(ctx, pod, container)
	if err != nil {
		return nil, err
	}
	options := &kubecontainer.RunContainerOptions{}
	if granted != nil {
		options.Envs, options.Mounts, options.Devices = granted.Envs, granted.Mounts, granted.Devices
		options.Annotations, options.CDIDevices = granted.Annotations, granted.CDIDevices
	}
	return options, nil
}

// devicesOf gives the IDs of a container's devices by resource.
func (n *node) devicesOf(uid types.UID, name string) (map[string][]string, error) {
	if _, _, err := n.container(uid, name); err != nil {
		return nil, err
	}
	ids := map[string][]string{}
	for resource, instances := range n.devices.GetDevices(string(uid), name) {
		ids[resource] = sets.List(sets.KeySet(instances))
	}
	return ids, nil
}

// status gives what the pod's status says of its devices' health (KEP-4680).
func (n *node) status(uid types.UID) (*v1.PodStatus, error) {
	pod, err := n.pod(uid)
	if err != nil {
		return nil, err
	}
	status := &v1.PodStatus{}
	for _, container := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, v1.ContainerStatus{Name: container.Name})
	}
	n.devices.UpdateAllocatedResourcesStatus(n.logger, pod, status)
	return status, nil
}

// remove ends a pod. As in a kubelet, its devices are free when they are next looked for.
func (n *node) remove(uid types.UID) error {
	if _, err := n.pod(uid); err != nil {
		return err
	}
	n.drop(uid)
	return nil
}

// capacity is what the node's status would say of devices.
type capacity struct {
	Capacity    v1.ResourceList `json:"capacity"`
	Allocatable v1.ResourceList `json:"allocatable"`
	// Gone are resources whose plugin has been away for too long.
	Gone []string `json:"gone"`
}

func (n *node) capacity() *capacity {
	all, allocatable, gone := n.devices.GetCapacity(n.logger)
	return &capacity{Capacity: all, Allocatable: allocatable, Gone: gone}
}

func (n *node) put(pod *v1.Pod) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	n.pods[pod.UID] = pod
}

func (n *node) drop(uid types.UID) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	delete(n.pods, uid)
}

func (n *node) pod(uid types.UID) (*v1.Pod, error) {
	n.mutex.Lock()
	defer n.mutex.Unlock()
	pod, known := n.pods[uid]
	if !known {
		return nil, fmt.Errorf("uid %q: no such pod on this node", uid)
	}
	return pod, nil
}

func (n *node) container(uid types.UID, name string) (*v1.Pod, *v1.Container, error) {
	pod, err := n.pod(uid)
	if err != nil {
		return nil, nil, err
	}
	for _, containers := range [][]v1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			if containers[i].Name == name {
				return pod, &containers[i], nil
			}
		}
	}
	return nil, nil, fmt.Errorf("container %q: pod %s has none of this name", name, pod.Name)
}
