// Functions that the programs share. All random numbers are hashes of whole numbers: a sine of a large number, as it is
// often used for a hash, has other bits on every driver.

const float PI = 3.14159265;
const float TAU = 6.28318531;

uint mixed(uint x) {
    x = (x ^ (x >> 16)) * 0x2C1B3C6Du;
    x = (x ^ (x >> 15)) * 0x297A2D39u;
    return x ^ (x >> 15);
}

float unit(uint x) {
    return float(x >> 8) / 16777216.0;
}

// The k-th random number of this candidate, in [0, 1).
float random(int k) {
    return unit(mixed(kd_random ^ mixed(uint(k) + 1u)));
}

float between(int k, float least, float most) {
    return mix(least, most, random(k));
}

int count(int k, int least, int most) {
    return least + int(random(k) * float(most - least + 1));
}

vec3 ink(int k) {
    return vec3(random(k), random(k + 1000), random(k + 2000));
}

// Random numbers of a lattice point, in [0, 1).
uint lattice(vec2 cell) {
    uvec2 whole = uvec2(ivec2(floor(cell + 0.5)));
    return mixed(whole.x + mixed(whole.y + kd_random));
}

float dice(vec2 cell) {
    return unit(lattice(cell));
}

vec2 dice2(vec2 cell) {
    uint x = lattice(cell);
    return vec2(unit(x), unit(mixed(x + 1u)));
}

vec3 dice3(vec2 cell) {
    uint x = lattice(cell);
    return vec3(unit(x), unit(mixed(x + 1u)), unit(mixed(x + 2u)));
}

mat2 turn(float angle) {
    float c = cos(angle), s = sin(angle);
    return mat2(c, s, -s, c);
}

// Coordinates from -1 to 1 along the smaller side.
vec2 centred(vec2 pixel) {
    return (2.0 * pixel - iResolution.xy) / min(iResolution.x, iResolution.y);
}

// The same, turned and moved at random, from -zoom to zoom with a zoom between the two.
vec2 placed(vec2 pixel, float least, float most) {
    vec2 p = centred(pixel) * least * pow(most / least, random(100));
    vec2 drift = vec2(random(101), random(102)) - 0.5;
    return turn(TAU * random(103)) * p + 20.0 * drift + 0.3 * iTime * (vec2(random(104), random(105)) - 0.5);
}

// Colours of a value, that come again at each whole number.
vec3 palette(float value) {
    vec3 centre = mix(vec3(0.5), ink(110), 0.35);
    vec3 swing = vec3(0.25) + 0.35 * ink(111);
    return clamp(centre + swing * cos(TAU * (value + ink(112))), 0.0, 1.0);
}

// Value noise, 0 to 1.
float noise(vec2 p) {
    vec2 i = floor(p), f = p - i;
    f = f * f * (3.0 - 2.0 * f);
    float low = mix(dice(i), dice(i + vec2(1, 0)), f.x);
    float high = mix(dice(i + vec2(0, 1)), dice(i + vec2(1, 1)), f.x);
    return mix(low, high, f.y);
}

float slope(vec2 cell, vec2 offset) {
    float angle = TAU * dice(cell);
    return dot(vec2(cos(angle), sin(angle)), offset);
}

// Gradient noise, about -0.7 to 0.7.
float gradient(vec2 p) {
    vec2 i = floor(p), f = p - i;
    vec2 u = f * f * f * (f * (6.0 * f - 15.0) + 10.0);
    float low = mix(slope(i, f), slope(i + vec2(1, 0), f - vec2(1, 0)), u.x);
    float high = mix(slope(i + vec2(0, 1), f - vec2(0, 1)), slope(i + vec2(1, 1), f - vec2(1, 1)), u.x);
    return mix(low, high, u.y);
}

// Simplex noise: the same on triangles, about -1 to 1.
float simplex(vec2 p) {
    vec2 i = floor(p + 0.36602540 * (p.x + p.y));
    vec2 a = p - i + 0.21132487 * (i.x + i.y);
    vec2 middle = a.x > a.y ? vec2(1, 0) : vec2(0, 1);
    vec2 b = a - middle + 0.21132487, c = a - 0.57735027;
    vec3 weight = max(0.5 - vec3(dot(a, a), dot(b, b), dot(c, c)), 0.0);
    weight *= weight;
    return 99.0 * dot(weight * weight, vec3(slope(i, a), slope(i + middle, b), slope(i + 1.0, c)));
}

// Noise of several octaves, 0 to 1.
float fbm(vec2 p) {
    float sum = 0.0, weight = 0.5;
    for (int k = 0; k < 5; k++) {
        sum += weight * noise(p);
        p = mat2(1.6, 1.2, -1.2, 1.6) * p + 7.3;
        weight *= 0.5;
    }
    return sum;
}

// Distances from the nearest and the second nearest of points, one in each cell, and the cell of the nearest.
vec4 nearest(vec2 p, float disorder) {
    vec2 i = floor(p), found = i;
    float first = 9.0, second = 9.0;
    for (int y = -1; y <= 1; y++) {
        for (int x = -1; x <= 1; x++) {
            vec2 cell = i + vec2(x, y);
            vec2 wander = 0.5 + 0.5 * disorder * sin(0.7 * iTime + TAU * dice2(cell));
            float far = length(cell + wander - p);
            if (far < first) {
                second = first;
                first = far;
                found = cell;
            } else {
                second = min(second, far);
            }
        }
    }
    return vec4(first, second, found);
}

// Distance from the segment a to b.
float segment(vec2 p, vec2 a, vec2 b) {
    vec2 along = b - a;
    return length(p - a - along * clamp(dot(p - a, along) / max(dot(along, along), 1e-6), 0.0, 1.0));
}

// How much of a pixel lies within a shape, of its distance in pixels of this size; below 0 is inside.
float inside(float far, float pixel) {
    return clamp(0.5 - far / pixel, 0.0, 1.0);
}

// Brightness of a surface with this normal, lit from a random side.
float lit(vec3 normal) {
    float angle = TAU * random(120), height = between(121, 0.4, 1.0);
    vec3 light = normalize(vec3(cos(angle), sin(angle), height));
    float shine = pow(max(reflect(-light, normal).z, 0.0), 12.0);
    return 0.25 + 0.75 * max(dot(normal, light), 0.0) + 0.4 * shine;
}
